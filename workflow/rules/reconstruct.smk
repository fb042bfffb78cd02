# Learned rounding of the weights, activations in full precision: once for each weight bit-width, grouping of layers
# and policy, shared by every method that starts from it.
rule reconstruct:
    input:
        model=refusing(CELLS.model),
        calibration=paths.CALIBRATION,
    output:
        paths.RECONSTRUCTION,
    log:
        "logs/reconstruct/{dataset}/{grouping}-{policy}-w{weight_bits}-seed{seed}.log",
    benchmark:
        "benchmarks/reconstruct/{dataset}/{grouping}-{policy}-w{weight_bits}-seed{seed}.tsv"
    resources:
        gpu=GPU,
        mem_mb=memory(16_000),
        runtime=1_440,
    params:
        settings=CELLS.settings("reconstruct"),
        code=CELLS.code("reconstruct"),
    message:
        "learn the rounding of {wildcards.dataset}, {wildcards.grouping}, {wildcards.policy}, {wildcards.weight_bits}-bit weights, seed {wildcards.seed}"
    shell:
        "quest reconstruct {wildcards.dataset:q} --settings {params.settings:q} --weight-bits {wildcards.weight_bits:q}"
        " --grouping {wildcards.grouping:q} --policy {wildcards.policy:q} --seed {wildcards.seed:q} --model {input.model:q}"
        " --calibration {input.calibration:q} --output {output:q} > {log:q} 2>&1"


rule reconstruct_all:
    input:
        TARGETS["reconstruct"],
