# A cell's numbers for `dvc metrics`: a row a file.
rule score:
    input:
        paths.METRICS,
    output:
        paths.SCORES,
    log:
        f"logs/score/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/score/{{dataset}}/{paths.CELL}.tsv"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        code=CELLS.code("score"),
    message:
        "numbers for dvc metrics of {wildcards.dataset}, {wildcards.method} {wildcards.bits}, seed {wildcards.seed}"
    shell:
        "quest score {input:q} --output {output:q} > {log:q} 2>&1"


rule score_all:
    input:
        TARGETS["score"],
