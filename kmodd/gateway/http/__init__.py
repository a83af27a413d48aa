# SPDX-License-Identifier: LGPL-2.1-or-later
"""HTTP without a word about modules: listening, admission, authentication, problems."""
