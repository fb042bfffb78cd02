# States of the full-precision sampler, which every method calibrates and finetunes on.
rule calibrate:
    input:
        model=refusing(CELLS.model),
        prompts=CELLS.prompts,
    output:
        paths.CALIBRATION,
    log:
        "logs/calibrate/{dataset}/seed{seed}.log",
    benchmark:
        "benchmarks/calibrate/{dataset}/seed{seed}.tsv"
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=240,
    params:
        settings=CELLS.settings("calibrate"),
        code=CELLS.code("calibrate"),
    message:
        "calibration data of {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "quest calibrate {wildcards.dataset:q} --settings {params.settings:q} --seed {wildcards.seed:q}"
        " --model {input.model:q} --output {output:q} > {log:q} 2>&1"


rule calibrate_all:
    input:
        TARGETS["calibrate"],
