# The paper's studies, each a job: its numbers, and a chart of them. Not part of the default run: `snakemake analyses`.
rule analyse:
    input:
        model=CELLS.studied("model"),
        calibration=CELLS.studied("calibration"),
        reconstruction=CELLS.studied("reconstruction"),
        reconstructions=CELLS.studied("reconstructions"),
        checkpoint=CELLS.studied("checkpoint"),
        checkpoints=CELLS.studied("checkpoints"),
        previews=CELLS.studied("previews"),
    output:
        csv=f"{paths.ANALYSIS}.csv",
        png=f"{paths.ANALYSIS}.png",
        svg=f"{paths.ANALYSIS}.svg",
    log:
        "logs/analyse/{dataset}/{study}.log",
    benchmark:
        "benchmarks/analyse/{dataset}/{study}.tsv"
    resources:
        gpu=GPU,
        mem_mb=memory(16_000),
        runtime=1_440,
    params:
        settings=CELLS.settings("analyse"),
        code=CELLS.code("analyse", STUDY),
        seed=RUN.seeds[0],
        files=study_options,
    message:
        "study {wildcards.study} of {wildcards.dataset}"
    shell:
        "quest analyse {wildcards.study:q} {wildcards.dataset:q} --settings {params.settings:q} --seed {params.seed:q}"
        " {params.files} --csv {output.csv:q} --png {output.png:q} --svg {output.svg:q} > {log:q} 2>&1"


rule analyse_all:
    input:
        TARGETS["analyse"],
