// Cores and regions of all blocks of a batch -> the number of every core, and the marks of a sample as one array.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process LINK_CORES {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 6 * sizeOf(found), task) }
    time { timeFor(sizeOf(found) / 1e7, task) }

    input:
    tuple val(meta), path(found), path(marks), path(grids)
    val _code

    output:
    tuple val(meta), path('*/*.marks.zarr'), emit: stores
    tuple val(meta), path('*/*.markers'), emit: markers
    path "${meta.id}/${meta.id}.link_cores.json", emit: record

    script:
    """
    link_cores.py --batch ${meta.id}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.marks.zarr
        touch \$sample/\$sample.markers
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.link_cores.json
    """
}
