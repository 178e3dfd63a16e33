# SPDX-License-Identifier: Apache-2.0
"""The operators, a folder or a file each: the public function, validation, schema, reference, backends."""
