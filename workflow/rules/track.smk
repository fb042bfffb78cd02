# MLflow, filled at the end from the table. Its store is a view, made again from tables at any time (`quest ui`).
rule track:
    input:
        table=paths.TABLE,
        figure=FIGURES,
    output:
        paths.TRACKING,
    log:
        "logs/track/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/track/{dataset}{of_suite}.tsv"
    resources:
        mlflow=1,  # several writers on its first use break a new store
        mem_mb=memory(2_000),
        runtime=10,
    params:
        code=CELLS.code("track", *TITLES),
        figures=option("figure"),
    message:
        "{wildcards.dataset}{wildcards.of_suite} in MLflow"
    shell:
        "quest track {input.table:q} {params.figures} --output {output:q} > {log:q} 2>&1"


rule track_all:
    input:
        TARGETS["track"],
