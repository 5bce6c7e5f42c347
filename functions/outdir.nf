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
