// The gathered labels, or marks with their numbers -> blocks in which every voxel bears the id of its object.
include { budgeted; memoryFor; timeFor } from '../../functions/resources'

process SEPARATE_OBJECTS {
    tag "${meta.id} ${group}"
    label 'process_single'
    memory { memoryFor(budgeted(meta.needs?.separate_objects?.memory, options), task) }
    time { timeFor(meta.needs?.separate_objects?.seconds, task) }

    input:
    tuple val(meta), val(group), path(stores), path(markers), path(rows), path(grids)
    val options
    val _code

    output:
    tuple val(meta), val(group), path('*/*.b*.zarr'), emit: blocks
    path "${meta.id}/${meta.id}.separate_objects.${group}.json", emit: record

    script:
    """
    separate_objects.py --batch ${meta.id} --group ${group} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.b${group}.zarr
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.separate_objects.${group}.json
    """
}
