# Pictures of a dataset: the same seeds under every cell, and the comparison by bit-width.
rule figures:
    input:
        samples=lambda wildcards: of_cells(paths.SAMPLES, wildcards.dataset, CELLS, RUN.seeds[:1], shards=[0]),
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
    log:
        "logs/figures/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/figures/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=2_000,
        runtime=10,
    params:
        code=code("quest.report.figures"),
    shell:
        "quest figures {wildcards.dataset} {input.samples} --table {input.table}"
        " --grid {output.grid} --comparison {output.comparison} > {log} 2>&1"


rule figures_all:
    input:
        everywhere(paths.SAMPLE_GRID),
        everywhere(paths.COMPARISON),
