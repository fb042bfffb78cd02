"""`quest show`: images and numbers of cells side by side, as one HTML page that needs nothing else.

`results` collects what `dvc pull` brought, `images` makes pictures that a page can carry, `page` puts both into the
files of `assets`, and `serving` shows the page on loopback.
"""
