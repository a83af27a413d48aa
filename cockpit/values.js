// SPDX-License-Identifier: LGPL-2.1-or-later
// Values of the bus as the views read them: variants unpacked, keys in snake_case, structs as objects. The HTTP gateway answers
// the same (kmodd/gateway/dependencies.py).

// Lists of structs, by the key they stand under, with the names of their fields.
const ROWS = {parameters: ["name", "type", "description", "writable"]};
// Maps whose keys are data.
const VERBATIM = ["parameters", "labels"];

const isMap = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** `loaded-by` and `LoadDurationUSec` as `loaded_by` and `load_duration_usec`. */
const key = (name) => name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").replaceAll("-", "_").toLowerCase();

// A variant of cockpit.js; no map of kmodd has exactly these two keys.
const isVariant = (value) => isMap(value) && Object.keys(value).length === 2 && "t" in value && "v" in value;

/** Variants unpacked, at any depth. */
function plain(value) {
  if (isVariant(value)) return plain(value.v);
  if (Array.isArray(value)) return value.map(plain);
  if (isMap(value)) return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each)]));
  return value;
}

function named(name, value) {
  if (isMap(value)) return VERBATIM.includes(name) ? value : spelled(value);
  if (!Array.isArray(value)) return value;
  const fields = ROWS[name];
  return value.map((row) => {
    if (fields && Array.isArray(row)) return Object.fromEntries(fields.map((field, index) => [field, row[index]]));
    return isMap(row) ? spelled(row) : row;
  });
}

const spelled = (values) =>
  Object.fromEntries(
    Object.entries(values).map(([name, value]) => {
      const word = key(name);
      return [word, named(word, value)];
    }),
  );

/** A map from the bus. */
export const fromBus = (values) => spelled(plain(values));

const TYPES = {boolean: "b", string: "s", number: "u"};

/** Options for the bus, `a{sv}`: keys with hyphens; what is not set is left out. Numbers are of the type `u`. */
export const options = (values) =>
  Object.fromEntries(
    Object.entries(values)
      .filter(([, value]) => value !== undefined && value !== "" && value !== false)
      .map(([name, value]) => [name.replaceAll("_", "-"), {t: TYPES[typeof value], v: value}]),
  );
