"""Files: written whole or not at all, tensors checked before they are read, data of installed packages."""
