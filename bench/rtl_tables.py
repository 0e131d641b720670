def write_docs(document):
    raise NotImplementedError
