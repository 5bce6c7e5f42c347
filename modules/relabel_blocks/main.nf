// Labels of a group of blocks, and the id of every component -> the instance labels of those blocks.
include { memoryFor; timeFor } from '../../functions/resources'

process RELABEL_BLOCKS {
    tag "${meta.id} ${group}"
    label 'process_single'
    memory { memoryFor(meta.needs?.relabel_blocks?.memory, task) }
    time { timeFor(meta.needs?.relabel_blocks?.seconds, task) }

    input:
    tuple val(meta), val(group), path(blocks), path(rows), path(grids), path(luts), path(linked_json)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.b*.instances.zarr'), emit: blocks
    path "${meta.id}/${meta.id}.relabel_blocks.${group}.json", emit: record

    script:
    """
    relabel_blocks.py --batch ${meta.id} --group ${group} ${options}
    """

    stub:
    """
    for block in ${[blocks].flatten().collect { block -> block.name - '.zarr' }.join(' ')}; do
        mkdir -p \${block%.b*}/\$block.instances.zarr
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.relabel_blocks.${group}.json
    """
}
