# Pictures of a dataset: the same seeds under every cell, quality by bit-width, and against size and cost.
rule figures:
    input:
        previews=lambda wildcards: CELLS.previews(wildcards.dataset),
        table=paths.TABLE,
    output:
        grid=report(
            paths.SAMPLE_GRID,
            category="{dataset}",
            subcategory="Every method and bit-width",
            labels={"result": "samples"},
            caption="../report/samples.rst",
        ),
        comparison=report(
            paths.COMPARISON,
            category="{dataset}",
            subcategory="Every method and bit-width",
            labels={"result": "comparison"},
            caption="../report/comparison.rst",
        ),
        tradeoff=report(
            TRADEOFF,
            category="{dataset}",
            subcategory="Every method and bit-width",
            labels={"result": "which method at which size"},
            caption="../report/tradeoff.rst",
        ),
    log:
        "logs/figures/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/figures/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=2_000,
        runtime=10,
    params:
        code=CELLS.code("figures", *TITLES),
    shell:
        "quest figures {wildcards.dataset:q} {input.previews:q} --table {input.table:q}"
        " --grid {output.grid:q} --comparison {output.comparison:q} --tradeoff {output.tradeoff:q}"
        " > {log:q} 2>&1"


rule figures_all:
    input:
        TARGETS["figures"],
