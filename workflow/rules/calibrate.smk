# States of the full-precision sampler, which every method calibrates and finetunes on.
rule calibrate:
    input:
        model=model,
        prompts=prompts,
    output:
        paths.CALIBRATION,
    log:
        "logs/calibrate/{dataset}/seed{seed}.log",
    benchmark:
        "benchmarks/calibrate/{dataset}/seed{seed}.tsv"
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=8_000,
        runtime=240,
    params:
        settings=protocol("sampler", "condition", "calibration"),
        code=code("quest.learning.calibration"),
    shell:
        "quest calibrate {wildcards.dataset} --settings {params.settings:q} --seed {wildcards.seed}"
        " --model {input.model} --output {output} > {log} 2>&1"


rule calibrate_all:
    input:
        everywhere(paths.CALIBRATION, seeds=RUN.chain_seeds),
