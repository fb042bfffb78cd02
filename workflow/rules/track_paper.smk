# A table of the papers in MLflow.
rule track_paper:
    input:
        paths.PAPER,
    output:
        paths.PAPER_TRACKING,
    log:
        "logs/track_paper/{dataset}/{table}.log",
    benchmark:
        "benchmarks/track_paper/{dataset}/{table}.tsv"
    wildcard_constraints:
        dataset="[^/]+",
        table="[^/]+",
    resources:
        mlflow=1,
        mem_mb=memory(2_000),
        runtime=10,
    params:
        code=CELLS.code("track_paper", *TITLES),
    message:
        "the paper's table {wildcards.table} on {wildcards.dataset} in MLflow"
    shell:
        "quest track-paper {input:q} --output {output:q} > {log:q} 2>&1"


rule track_paper_all:
    input:
        TARGETS["track_paper"],
