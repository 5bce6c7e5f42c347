// All blocks of a batch -> one array per sample that any box can be read from, and the grid of the ids to be.
include { memoryFor; timeFor } from '../../functions/resources'

process GATHER_BLOCKS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.gather_blocks?.memory, task) }
    time { timeFor(meta.needs?.gather_blocks?.seconds, task) }

    input:
    tuple val(meta), path(blocks), path(grids)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.gathered.zarr'), emit: stores
    tuple val(meta), path('*/*.grid.json'), emit: grids
    path "${meta.id}/${meta.id}.gather_blocks.json", emit: record

    script:
    """
    gather_blocks.py --batch ${meta.id} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.gathered.zarr
        cp -L \$sample.grid.json \$sample/
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.gather_blocks.json
    """
}
