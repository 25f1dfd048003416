"""Files: written completely or not at all, tensors checked before reading, data of installed packages."""
