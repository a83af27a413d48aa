// SPDX-License-Identifier: LGPL-2.1-or-later
// Facts about a module from its file and from the kernel.

import {joined, make, moduleLink} from "./dom.js";
import {duration, size, time} from "./wording.js";

const links = (names) => (names?.length ? joined(names.map(moduleLink)) : null);
const code = (text) => (text ? make("code", {}, text) : null);
/** A path, to be broken after a slash where it is too long for its line. */
const path = (text) =>
  text ? make("code", {}, ...text.split(/(?<=\/)/).flatMap((part) => [part, make("wbr")])) : null;
const flag = (value) => (value === undefined ? null : value ? "yes" : "no");

function long(key, label, texts) {
  if (!texts?.length) return null;
  return make(
    "details",
    {"data-key": key},
    make("summary", {}, `${texts.length} ${label}`),
    make("ul", {class: "code"}, ...texts.map((text) => make("li", {}, text))),
  );
}

/** The list of facts. */
export function facts(described) {
  const live = described.live || {};
  const rows = [
    ["Description", described.description],
    ["Size", live.size !== undefined ? size(live.size) : null],
    ["Origin", live.origin],
    ["Loaded", live.loaded_at ? time(live.loaded_at) : null],
    ["Loading took", live.load_duration_usec ? duration(live.load_duration_usec) : null],
    ["Needs", links(live.dependencies || described.depends)],
    ["Used by", links(live.holders)],
    ["Loads before", links(described.softdep_pre)],
    ["Loads after", links(described.softdep_post)],
    ["File", path(described.filename)],
    ["Version", described.version],
    ["Source version", code(described.srcversion)],
    ["Version magic", code(described.vermagic?.trim())],
    ["License", described.license],
    ["Author", described.author],
    ["Signed", flag(described.signed)],
    ["Signer", described.signer],
    ["In the kernel’s tree", flag(described.intree)],
    ["Firmware", long("firmware", described.firmware?.length === 1 ? "file" : "files", described.firmware)],
    ["Aliases", long("aliases", described.aliases?.length === 1 ? "alias" : "aliases", described.aliases)],
  ];
  return make(
    "dl",
    {class: "facts"},
    ...rows
      .filter(([, value]) => value)
      .map(([term, value]) => [make("dt", {}, term), make("dd", {}, ...[value].flat())]),
  );
}
