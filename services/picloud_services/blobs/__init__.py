"""Large payloads: content in files (or an object store later), named by opaque ids."""
