"""The codec: images to files of the size that the bound promises, and back."""

from vlae.codec.coding import compress, compress_files, decompress, decompress_files, fingerprint, info

__all__ = ["compress", "compress_files", "decompress", "decompress_files", "fingerprint", "info"]
