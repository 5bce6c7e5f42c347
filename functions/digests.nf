// What Nextflow's own cache does not see: files inside an input folder, and the library behind a script.

// A folder's files by relative path, size and time of change -> hex digest; '' for a plain file, which Nextflow hashes.
def fingerprint(path) {
    if (!path.isDirectory()) {
        return ''
    }
    def rows = java.nio.file.Files.walk(path, java.nio.file.FileVisitOption.FOLLOW_LINKS)
        .filter { file -> !file.isDirectory() }
        .map { file -> "${path.relativize(file)}\t${file.size()}\t${file.lastModified()}".toString() }
        .sorted()
        .toList()
    return sha256(rows.join('\n').bytes)
}

// A script of bin/ with everything of bin/voxelmill/ that it can import -> hex digest.
def codeDigest(bin, script) {
    def files = codeFiles(bin, [bin.resolve("${script}.py")], [] as Set)
    return sha256(files.collect { file -> "${bin.relativize(file)}\t${sha256(file.bytes)}" }.sort().join('\n').bytes)
}

def codeFiles(bin, found, seen) {
    def added = found.findAll { file -> !seen.contains(file) && file.exists() }.toSet()
    if (!added) {
        return seen
    }
    return codeFiles(bin, added.collectMany { file -> neighbours(bin, file) }, seen + added)
}

// The modules that a file imports, the packages they lie in, and the data files of those packages (templates, tables).
def neighbours(bin, file) {
    if (!file.name.endsWith('.py')) {
        return []
    }
    return importedNames(file.text).collectMany { name ->
        def parts = name.tokenize('.')
        def packages = (1..parts.size()).collect { n -> bin.resolve(parts.take(n).join('/')) }
        def modules = packages.collect { folder -> folder.resolveSibling("${folder.name}.py") }
        def inits = packages.collect { folder -> folder.resolve('__init__.py') }
        modules + inits + packages.drop(1).collectMany { folder -> dataFiles(folder) }
    }
}

def importedNames(text) {
    def plain = text.findAll(/(?m)^\s*import\s+(voxelmill[\w.]*)/) { _all, name -> [name] }
    def from = text.findAll(/(?m)^\s*from\s+(voxelmill[\w.]*)\s+import\s+(\([^)]*\)|.*)/) { _all, module, names ->
        [module] + names.findAll(/\w+/).collect { name -> "${module}.${name}".toString() }
    }
    return (plain + from).flatten().unique()
}

def dataFiles(folder) {
    if (!folder.isDirectory()) {
        return []
    }
    return java.nio.file.Files.walk(folder)
        .filter { file -> !file.isDirectory() && !file.name.endsWith('.py') && !file.toString().contains('__pycache__') }
        .toList()
}

def sha256(bytes) {
    return java.security.MessageDigest.getInstance('SHA-256').digest(bytes).encodeHex().toString()
}
