# A method quantizes the model at a bit-width, from the learned rounding where it starts from that.
rule finetune:
    input:
        model=refusing(CELLS.model),
        calibration=paths.CALIBRATION,
        reconstruction=CELLS.reconstruction,
    output:
        paths.CHECKPOINT,
    log:
        f"logs/finetune/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/finetune/{{dataset}}/{paths.CELL}.tsv"
    wildcard_constraints:
        method=one_of(QUANTIZING),
    resources:
        gpu=GPU,
        mem_mb=memory(16_000),
        runtime=1_440,
    params:
        settings=CELLS.settings("finetune"),
        code=CELLS.code("finetune", METHOD),
        reconstruction=option("reconstruction"),
    message:
        "quantize {wildcards.dataset} by {wildcards.method} at {wildcards.bits}, seed {wildcards.seed}"
    shell:
        "quest finetune {wildcards.dataset:q} --settings {params.settings:q} --method {wildcards.method:q}"
        " --bits {wildcards.bits:q} --seed {wildcards.seed:q} --model {input.model:q}"
        " --calibration {input.calibration:q} {params.reconstruction} --output {output:q} > {log:q} 2>&1"


rule finetune_all:
    input:
        TARGETS["finetune"],
