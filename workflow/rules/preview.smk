# The first images of a cell: what pictures show, small enough to be shared with the numbers.
rule preview:
    input:
        lambda wildcards: CELLS.samples(wildcards)[0],
    output:
        paths.PREVIEW,
    log:
        f"logs/preview/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/preview/{{dataset}}/{paths.CELL}.tsv"
    resources:
        mem_mb=memory(1_000),
        runtime=5,
    params:
        code=CELLS.code("preview"),
    message:
        "preview of {wildcards.dataset}, {wildcards.method} {wildcards.bits}, seed {wildcards.seed}"
    shell:
        "quest preview {input:q} --output {output:q} > {log:q} 2>&1"


rule preview_all:
    input:
        TARGETS["preview"],
