// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What the kernel reads of the string of parameters given to finit_module(2): the tests' own account of its rules, compiled, to
 * compare kmodd's reading and spelling with. tests/system/test_parameter_strings.py compares it with a real kernel.
 *
 * - Blanks are the bytes 0x09 to 0x0d, 0x20 and 0xa0. A word ends at the first one outside quotes.
 * - Every quote opens or closes; nothing escapes one. One that is left open reaches to the end of the string.
 * - The first `=` that is not the first letter ends the name. Without it there is no value.
 * - A value that begins with a quote loses it, and one at its end. A word that begins with a quote loses it, and one at its end.
 * - The word `--` without a value ends the module's parameters.
 */
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct argument {
	const char *name;
	const char *value; /* NULL: none */
};

static bool is_blank(char letter)
{
	switch ((unsigned char)letter) {
	case 0x09: case 0x0a: case 0x0b: case 0x0c: case 0x0d: case 0x20: case 0xa0:
		return true;
	default:
		return false;
	}
}

static char *past_blanks(char *text)
{
	while (is_blank(*text))
		text++;
	return text;
}

/* Ends `from` before a closing quote that is its last letter; `end` is where it stops. */
static void lose_last_quote(const char *from, char *end)
{
	if (end > from && end[-1] == '"')
		end[-1] = '\0';
}

/* Cuts `text` up in place; answers how many parameters there are, of which at most `room` are written. */
size_t read_arguments(char *text, struct argument *into, size_t room)
{
	size_t count = 0;

	for (text = past_blanks(text); *text; text = past_blanks(text)) {
		bool around = *text == '"', inside = around;
		char *name = text + around, *value = NULL, *end;
		bool more;

		for (end = name; *end && (inside || !is_blank(*end)); end++) {
			if (*end == '=' && end != name && !value)
				value = end;
			if (*end == '"')
				inside = !inside;
		}
		more = *end != '\0';
		*end = '\0';
		if (value) {
			*value++ = '\0';
			if (*value == '"') {
				/* The quote that opens may be the one that closes. */
				lose_last_quote(value, end);
				value++;
			}
		}
		if (around)
			lose_last_quote(name, end);
		text = end + more;
		if (!value && !strcmp(name, "--"))
			break;
		if (count < room)
			into[count] = (struct argument){ name, value };
		count++;
	}
	return count;
}
