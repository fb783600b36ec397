"""Images in: synthetic faces, folders, parquet and Hub sets, augmentation, splits."""
