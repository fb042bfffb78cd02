# Learned rounding of the weights, activations in full precision: once for each weight bit-width, shared by every method that starts from its variant.
rule reconstruct:
    input:
        model=model,
        calibration=paths.CALIBRATION,
    output:
        paths.RECONSTRUCTION,
    log:
        "logs/reconstruct/{dataset}/{variant}-w{weight_bits}-seed{seed}.log",
    benchmark:
        "benchmarks/reconstruct/{dataset}/{variant}-w{weight_bits}-seed{seed}.tsv"
    resources:
        gpu=GPU,
        mem_mb=16_000,
        runtime=1_440,
    params:
        settings=protocol(
            "sampler",
            "condition",
            "calibration",
            "quantizer.weight_search",
            "quantizer.weight_group",
            "quantizer.split_shortcuts",
            "reconstruction",
        ),
        code=code("quest.learning.reconstruction"),
    shell:
        "quest reconstruct {wildcards.dataset} --settings {params.settings:q} --weight-bits {wildcards.weight_bits}"
        " --variant {wildcards.variant} --seed {wildcards.seed} --model {input.model} --calibration {input.calibration}"
        " --output {output} > {log} 2>&1"


rule reconstruct_all:
    input:
        [
            file
            for file in everywhere(paths.RECONSTRUCTION, seeds=RUN.chain_seeds)
            if not Path(file).name.startswith("none-")
        ],
