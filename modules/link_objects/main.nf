// Components of all blocks of a batch -> the objects of its samples, the id of every component, who measures what.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process LINK_OBJECTS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 6 * sizeOf(components), task) }
    time { timeFor(sizeOf(components) / 1e7, task) }

    input:
    tuple val(meta), path(components), path(grids), path(infos)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.lut'), emit: luts, optional: true
    tuple val(meta), path('*/*.linked.parquet'), path('*/*.linked.json'), path("${meta.id}/${meta.id}.measures.csv"), emit: objects
    path "${meta.id}/${meta.id}.link_objects.json", emit: record

    script:
    """
    link_objects.py --batch ${meta.id} ${options}
    """

    stub:
    """
    for block in ${[components].flatten().collect { file -> file.name - '.components' }.join(' ')}; do
        mkdir -p \${block%.b*}
        touch \${block%.b*}/\$block.lut
    done
    mkdir -p ${meta.id}
    echo sample,task,first,last,memory_bytes > ${meta.id}/${meta.id}.measures.csv
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.linked.parquet \$sample/\$sample.linked.json
        echo \$sample,0,0,1,1000000 >> ${meta.id}/${meta.id}.measures.csv
    done
    touch ${meta.id}/${meta.id}.link_objects.json
    """
}
