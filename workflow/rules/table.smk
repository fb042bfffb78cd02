# The table of a dataset: a row a cell, mean and spread over the seeds.
rule table:
    input:
        metrics=lambda wildcards: of_cells(paths.METRICS, wildcards.dataset, CELLS),
    output:
        json=paths.TABLE,
        csv=report(
            paths.TABLE_CSV,
            category="{dataset}",
            subcategory="Every method and bit-width",
            labels={"result": "table"},
            caption="../report/table.rst",
        ),
        markdown=paths.TABLE_MARKDOWN,
    log:
        "logs/table/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/table/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=1_000,
        runtime=10,
    params:
        code=code("quest.report.tables"),
    shell:
        "quest table {wildcards.dataset} {input.metrics}"
        " --output {output.json} --csv {output.csv} --markdown {output.markdown} > {log} 2>&1"


rule table_all:
    input:
        everywhere(paths.TABLE),
        everywhere(paths.TABLE_CSV),
        everywhere(paths.TABLE_MARKDOWN),
