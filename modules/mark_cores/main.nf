// The gathered labels -> the cores and the regions in the shards of a group of blocks, and which of them touch.
include { memoryFor; timeFor } from '../../functions/resources'

process MARK_CORES {
    tag "${meta.id} ${group}"
    label 'process_single'
    memory { memoryFor(meta.needs?.mark_cores?.memory, task) }
    time { timeFor(meta.needs?.mark_cores?.seconds, task) }

    input:
    tuple val(meta), val(group), path(stores), path(rows), path(grids)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.{cores,regions}'), emit: cores
    tuple val(meta), path('*/*.marks.zarr'), emit: marks
    path "${meta.id}/${meta.id}.mark_cores.${group}.json", emit: record

    script:
    """
    mark_cores.py --batch ${meta.id} --group ${group} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.b${group}.marks.zarr
        touch \$sample/\$sample.b${group}.cores \$sample/\$sample.b${group}.regions
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.mark_cores.${group}.json
    """
}
