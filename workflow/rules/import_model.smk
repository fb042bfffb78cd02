# The published model of a dataset, converted once. Its source is no input: a run can be planned before it is there, and
# once it is converted the source may go. No code parameter either: the model that results were published with stays.
rule import_model:
    input:
        architecture=CELLS.architecture,
    output:
        MODEL,
    log:
        "logs/import_model/{dataset}.log",
    benchmark:
        "benchmarks/import_model/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(CELLS.imported),
    priority: 100  # first, so that a run without weights stops there
    resources:
        mem_mb=memory(16_000),
        runtime=120,
    params:
        settings=CELLS.settings("import_model"),
    message:
        "import the model of {wildcards.dataset}"
    shell:
        "quest import-model {wildcards.dataset:q} --settings {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule import_model_all:
    input:
        TARGETS["import_model"],
