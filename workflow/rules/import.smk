# The published model of a dataset, converted once. Its source is no input: a run can be planned before it is there, and
# once it is converted the source may go. No code parameter either: the model that results were published with stays.
rule import:
    input:
        architecture=architecture,
    output:
        MODEL,
    log:
        "logs/import/{dataset}.log",
    benchmark:
        "benchmarks/import/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(IMPORTED),
    priority: 100  # first, so that a run without weights stops there
    resources:
        mem_mb=16_000,
        runtime=120,
    params:
        settings=protocol("source", "source_sha256", "architecture", "clip_sample"),
    shell:
        "quest import {wildcards.dataset} --settings {params.settings:q} --output {output} > {log} 2>&1"


rule import_all:
    input:
        expand(MODEL, dataset=IMPORTED),
