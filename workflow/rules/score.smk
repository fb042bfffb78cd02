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
        mem_mb=500,
        runtime=5,
    params:
        code=CELLS.code("score"),
    shell:
        "quest score {input:q} --output {output:q} > {log:q} 2>&1"


rule score_all:
    input:
        TARGETS["score"],
