"""Pages for people who would rather look than read: galleries in a folder, and pages in one file; no server, no network."""
