// What of a model fits the GPU: one batch through its network before anything is planned, so that a sample has one plan
// from the start and never two kinds of device.
include { memoryFor; timeFor } from '../../functions/resources'

process PROBE_DEVICE {
    label 'process_gpu'
    label 'process_torch'
    memory { memoryFor(4_000_000_000, task) }
    time { timeFor(600, task) }

    input:
    tuple val(member), path(packed, stageAs: '_package') // the model's number, 0 for the only one
    val options
    val _code

    output:
    tuple val(member), path('device.json'), emit: device
    path "probe_device/probe_device.probe_device${member ? ".m${member}" : ''}.json", emit: record

    script:
    """
    probe_device.py --package _package ${member ? "--member ${member}" : ''} ${options}
    """

    stub:
    """
    mkdir -p probe_device
    echo '{}' > device.json
    touch probe_device/probe_device.probe_device${member ? ".m${member}" : ''}.json
    """
}
