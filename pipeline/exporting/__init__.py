"""Labels of a store as files that need its images: one file a format."""
