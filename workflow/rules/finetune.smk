# A method quantizes the model at a bit-width, from the learned rounding where it starts from that.
rule finetune:
    input:
        model=model,
        calibration=paths.CALIBRATION,
        reconstruction=reconstruction,
    output:
        paths.CHECKPOINT,
    log:
        f"logs/finetune/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/finetune/{{dataset}}/{paths.CELL}.tsv"
    wildcard_constraints:
        method=one_of([*METHODS, *CONFIG.variants]),
    resources:
        gpu=GPU,
        mem_mb=16_000,
        runtime=1_440,
    params:
        settings=protocol("sampler", "condition", "calibration", "quantizer", "methods.{method}"),
        code=code("quest.methods", "quest.methods.{method}"),
        reconstruction=option("reconstruction"),
    shell:
        "quest finetune {wildcards.dataset} --settings {params.settings:q} --method {wildcards.method}"
        " --bits {wildcards.bits} --seed {wildcards.seed} --model {input.model} --calibration {input.calibration}"
        " {params.reconstruction} --output {output} > {log} 2>&1"


rule finetune_all:
    input:
        everywhere(paths.CHECKPOINT, seeds=RUN.chain_seeds),
