# A table of config/published.yaml on a dataset: its cells, run where they are missing, beside the published numbers.
rule paper:
    input:
        metrics=cells_of_table,
        published=str(published.PUBLISHED_FILE),
    output:
        json=paths.PAPER,
        csv=report(
            paths.PAPER_CSV,
            category="{dataset}",
            subcategory="Tables of the paper, and ablations",
            labels={"result": "{table}"},
            caption="../report/paper.rst",
        ),
        markdown=paths.PAPER_MARKDOWN,
    log:
        "logs/paper/{dataset}/{table}.log",
    benchmark:
        "benchmarks/paper/{dataset}/{table}.tsv"
    wildcard_constraints:
        dataset="[^/]+",  # unknown names are answered with the known ones
        table="[^/]+",
    resources:
        mem_mb=1_000,
        runtime=10,
    params:
        code=code("quest.report.paper"),
    shell:
        "quest paper {wildcards.table} {wildcards.dataset} {input.metrics} --published {input.published}"
        " --output {output.json} --csv {output.csv} --markdown {output.markdown} > {log} 2>&1"


rule track_paper:
    input:
        paths.PAPER,
    output:
        paths.PAPER_TRACKING,
    log:
        "logs/track/{dataset}/{table}.log",
    benchmark:
        "benchmarks/track/{dataset}/{table}.tsv"
    wildcard_constraints:
        dataset="[^/]+",
        table="[^/]+",
    resources:
        mlflow=1,
        mem_mb=2_000,
        runtime=10,
    params:
        code=code("quest.report.tracking"),
    shell:
        "quest track --paper {input} --output {output} > {log} 2>&1"


rule paper_all:
    input:
        tables_of_run(paths.PAPER_MARKDOWN),
        tables_of_run(paths.PAPER_TRACKING),
