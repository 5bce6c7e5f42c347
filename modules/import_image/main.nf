// Any format -> store, in one streaming pass. An image that is chunked Zarr already is measured, not copied.
process IMPORT_IMAGE {
    tag "${meta.id}"
    label 'process_single'

    input:
    tuple val(meta), '-', path(images, stageAs: '_images/?/*'), val(_fingerprints)
    val _code

    output:
    tuple val(meta), path('*/*.image.json'), emit: info
    tuple val(meta), path('*/*.image.zarr'), emit: store, optional: true
    path '*/*.projections.npz', emit: pictures
    path "${meta.id}/${meta.id}.import_image.json", emit: record

    script:
    """
    import_image.py --batch ${meta.id} --images _images
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.image.zarr
        touch \$sample/\$sample.image.json \$sample/\$sample.projections.npz
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.import_image.json
    """
}
