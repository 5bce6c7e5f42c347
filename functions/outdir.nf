// Whether results can be written: asked before any work, because publishing comes last.

// -> what is wrong with the folder for the results, or nothing. Object stores are not asked.
def outdirFaults(text) {
    if (text.contains('://') || text =~ /\p{Cntrl}/) {
        return []
    }
    def place = nearestExisting(file(text, glob: false).toAbsolutePath().normalize())
    if (!place.isDirectory()) {
        return ["--outdir: ${place} is ${place.exists() ? 'a file' : 'a link to nothing'}; name another folder, or move it away"]
    }
    if (!java.nio.file.Files.isWritable(place)) {
        return ["--outdir: you may not write in ${place}; name another folder, or have its permissions changed"]
    }
    return []
}

def nearestExisting(path) {
    return java.nio.file.Files.exists(path, java.nio.file.LinkOption.NOFOLLOW_LINKS) ? path : nearestExisting(path.parent)
}

// What CHECK_INPUT estimated (bytes) -> what is wrong with the disk of the folder for the results, or nothing. Results of an
// earlier run are overwritten, so that their bytes count as free. Links need no room.
def roomFaults(text, mode, needed) {
    if (text.contains('://') || !(mode in ['copy', 'copyNoFollow', 'move'])) {
        return []
    }
    def folder = file(text, glob: false).toAbsolutePath().normalize()
    def free = java.nio.file.Files.getFileStore(nearestExisting(folder)).usableSpace
    if (needed <= free || needed <= free + bytesIn(folder)) {
        return []
    }
    return ["--outdir: the results need about ${gigabytes(needed)}, the disk of ${folder} has ${gigabytes(free)} free; free space, or name a folder on a larger disk"]
}

// The file, where there is room for the results; results come last, so that this is told before any work.
def ifRoom(samples, text, mode, needed) {
    def faults = roomFaults(text, mode, needed)
    if (faults) {
        error(faults.join('\n'))
    }
    return samples
}

def bytesIn(folder) {
    return folder.isDirectory() ? java.nio.file.Files.walk(folder).filter { path -> path.isFile() }.mapToLong { path -> path.size() }.sum() : 0
}

def gigabytes(number) {
    return String.format(Locale.ROOT, '%.1f GB', number / 1e9)
}
