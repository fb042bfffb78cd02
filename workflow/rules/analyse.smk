# The paper's studies, each a job: its numbers, and a chart of them. Not part of the default run: `snakemake analyses`.
rule analyse:
    input:
        model=studied("model"),
        calibration=studied("calibration"),
        reconstruction=studied("reconstruction"),
        reconstructions=studied("reconstructions"),
        checkpoint=studied("checkpoint"),
        checkpoints=studied("checkpoints"),
        samples=studied("samples"),
    output:
        csv=f"{paths.ANALYSIS}.csv",
        png=report(
            f"{paths.ANALYSIS}.png",
            category="{dataset}",
            subcategory="Studies",
            labels={"result": "{study}"},
            caption="../report/analysis.rst",
        ),
        svg=f"{paths.ANALYSIS}.svg",
    log:
        "logs/analyse/{dataset}/{study}.log",
    benchmark:
        "benchmarks/analyse/{dataset}/{study}.tsv"
    resources:
        gpu=GPU,
        mem_mb=16_000,
        runtime=1_440,
    params:
        settings=lambda wildcards: protocol(*STUDIES[wildcards.study].sections)(wildcards),
        code=code("quest.studies", "quest.studies.{study}"),
        seed=RUN.seeds[0],
        files=study_options,
    shell:
        "quest analyse {wildcards.study} {wildcards.dataset} --settings {params.settings:q} --seed {params.seed}"
        " {params.files} --csv {output.csv} --png {output.png} --svg {output.svg} > {log} 2>&1"


rule analyse_all:
    input:
        expand(f"{paths.ANALYSIS}.{{ending}}", dataset=RUN.datasets, study=STUDIES, ending=["csv", "png", "svg"]),
