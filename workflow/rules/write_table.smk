# The table for reading and for other programs.
rule write_table:
    input:
        paths.TABLE,
    output:
        csv=paths.TABLE_CSV,
        markdown=paths.TABLE_MARKDOWN,
    log:
        "logs/write_table/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/write_table/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=memory(1_000),
        runtime=10,
    params:
        code=CELLS.code("write_table", *TITLES),
    message:
        "table of {wildcards.dataset}{wildcards.of_suite} for reading"
    shell:
        "quest write-table {input:q} --csv {output.csv:q} --markdown {output.markdown:q} > {log:q} 2>&1"


rule write_table_all:
    input:
        TARGETS["write_table"],
