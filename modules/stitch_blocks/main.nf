// Pieces of a group of blocks -> finished labels of those blocks.
process STITCH_BLOCKS {
    tag "${meta.id} ${group}"
    label 'process_single'

    input:
    tuple val(meta), val(group), path(pieces), path(plans), path(blocks)
    val _code

    output:
    tuple val(meta), val(group), path('*/*.b*.zarr'), emit: blocks
    path "${meta.id}/${meta.id}.stitch_blocks.${group}.json", emit: record

    script:
    """
    stitch_blocks.py --batch ${meta.id} --group ${group}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.b${group}.zarr
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.stitch_blocks.${group}.json
    """
}
