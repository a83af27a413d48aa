// SPDX-License-Identifier: LGPL-2.1-or-later
// Numbers, times and people as words.

const two = (number) => String(number).padStart(2, "0");

/** Bytes as lsmod's readers think of them. */
export function size(bytes) {
  if (bytes >= 1 << 20) return `${(bytes / (1 << 20)).toFixed(1)} MiB`;
  return `${Math.ceil(bytes / 1024)} KiB`;
}

/** Microseconds since 1970 as local time, to the second. */
export function time(microseconds) {
  const at = new Date(microseconds / 1000);
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
}

/** The same in UTC, for programs. */
export const utc = (microseconds) => new Date(microseconds / 1000).toISOString();

/** Microseconds that something took. */
export function duration(microseconds) {
  if (microseconds >= 1e6) return `${(microseconds / 1e6).toFixed(1)} s`;
  return `${(microseconds / 1e3).toFixed(1)} ms`;
}

/** A count with its noun. */
export const count = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;

/** Who caused a record: the token if the gateway named one, else the user. */
export function who(record) {
  if (record.on_behalf_of) return record.on_behalf_of;
  if (record.exe === "kmodd") return "kmodd itself";
  if (record.uid === undefined) return "";
  return record.uid === 0 ? "root" : `uid ${record.uid}`;
}

const TAINT = {
  P: "proprietary",
  O: "out of tree",
  F: "forced",
  C: "staging",
  E: "unsigned",
  K: "live patch",
  X: "auxiliary",
  N: "test",
};

/** What the letters of a module's taint mean. */
export const taint = (letters) => [...letters].map((letter) => TAINT[letter] || letter).join(", ");

/** The states of a module, in words. */
export const STATES = {
  live: "loaded",
  coming: "loading",
  going: "unloading",
  builtin: "built in",
  available: "not loaded",
  absent: "absent",
  disabled: "disabled",
};
