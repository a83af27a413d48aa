// SPDX-License-Identifier: LGPL-2.1-or-later
// The dependency graph as a picture. A module lights up together with what uses it and what it needs.

import {modules} from "../calls.js";
import {draw, joined, make, moduleLink, nothing, show} from "./dom.js";
import {BOX, LETTER, PADDING, picture} from "./picture.js";
import {Relations} from "./relations.js";
import {count} from "./wording.js";

const ZOOMS = [0.4, 0.55, 0.7, 0.85, 1, 1.25, 1.6, 2];

/** Kinds of events after which the graph may have changed. */
export const concerns = ["module-added", "module-removed", "module-changed"];

/** The view; `chosen` is a module to light up. */
export function open(main, chosen) {
  const told = make("div", {class: "told-relations", id: "relations"});
  const canvas = make("div", {
    class: "canvas",
    tabindex: "0",
    role: "group",
    "aria-label": "Dependency graph of the loaded modules",
  });
  const alone = make("div");
  const find = make("input", {
    type: "search",
    id: "find",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "find a module",
    "aria-keyshortcuts": "/",
    input: () => search(),
    keydown: (event) => {
      if (event.key === "Enter") links.get(found())?.focus();
    },
  });
  const zoomed = make("span", {class: "dim number", role: "status"});
  const zoomButton = (label, text, by) =>
    make("button", {type: "button", class: "small", "aria-label": label, click: () => zoomBy(by)}, text);
  main.append(
    make(
      "div",
      {class: "tools"},
      make("label", {for: "find", class: "unseen"}, "Find a module"),
      find,
      make("span", {class: "zoom"}, zoomButton("Smaller", "−", -1), zoomButton("Larger", "+", 1), zoomed),
      make(
        "ul",
        {class: "legend", "aria-label": "Colours"},
        make("li", {class: "is-user"}, "uses it"),
        make("li", {class: "is-chosen"}, "the module"),
        make("li", {class: "is-needed"}, "it needs"),
      ),
    ),
    told,
    canvas,
    alone,
  );
  let relations = null;
  let links = new Map();
  let paths = [];
  let zoom = matchMedia("(max-width: 40rem)").matches ? ZOOMS.indexOf(0.7) : ZOOMS.indexOf(1);
  let image = null;
  let pinned = chosen || "";

  const found = () =>
    relations.names.find((name) => name.startsWith(find.value.trim())) ||
    relations.names.find((name) => name.includes(find.value.trim()));

  function search() {
    if (!relations) return;
    const name = find.value.trim() ? found() : pinned;
    light(name);
    if (name) links.get(name)?.scrollIntoView({block: "nearest", inline: "nearest"});
  }

  function zoomBy(by) {
    zoom = Math.min(Math.max(zoom + by, 0), ZOOMS.length - 1);
    fit();
  }

  function fit() {
    if (!image) return;
    zoomed.textContent = `${Math.round(ZOOMS[zoom] * 100)} %`;
    image.svg.setAttribute("width", image.width * ZOOMS[zoom]);
    image.svg.setAttribute("height", image.height * ZOOMS[zoom]);
  }

  function light(name) {
    const users = name ? relations.reach(name, relations.users) : new Set();
    const needs = name ? relations.reach(name, relations.needs) : new Set();
    const kind = (one) => (one === name ? "is-chosen" : users.has(one) ? "is-user" : needs.has(one) ? "is-needed" : "");
    main.classList.toggle("lit", Boolean(name));
    for (const [one, node] of links) {
      node.setAttribute("class", `box ${kind(one)}`);
      if (one === name) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
    for (const {user, used, node} of paths) {
      const up = (used === name || users.has(used)) && users.has(user);
      const down = (user === name || needs.has(user)) && needs.has(used);
      node.setAttribute("class", up ? "is-user" : down ? "is-needed" : "");
    }
    tell(name, users, needs);
  }

  function tell(name, users, needs) {
    show(told, [name || "", [...users], [...needs]], () => {
      if (!name)
        return [
          make(
            "p",
            {class: "dim"},
            "Point at a module, or use the arrow keys: left to its users, right to its dependencies.",
          ),
        ];
      const part = (term, direct, all) => [
        make("dt", {}, term),
        make(
          "dd",
          {},
          ...(direct.length ? joined(direct.map(moduleLink)) : ["no module"]),
          all.size > direct.length && make("span", {class: "dim"}, ` and ${all.size - direct.length} more indirectly`),
        ),
      ];
      return [
        make(
          "dl",
          {},
          make("dt", {}, "Module"),
          make("dd", {}, moduleLink(name)),
          ...part("Used by", relations.users.get(name), users),
          ...part("Needs", relations.needs.get(name), needs),
        ),
      ];
    });
  }

  function pin(name) {
    pinned = name;
    history.replaceState(null, "", name ? `#/graph/${encodeURIComponent(name)}` : "#/graph");
    light(name);
  }

  /** The next module in a direction: neighbours by the lines, the others by where they are. */
  function next(name, key) {
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const near = key === "ArrowLeft" ? relations.users.get(name) : relations.needs.get(name);
      const here = image.boxes.get(name).y;
      return near.toSorted(
        (one, other) => Math.abs(image.boxes.get(one).y - here) - Math.abs(image.boxes.get(other).y - here),
      )[0];
    }
    const {x, y} = image.boxes.get(name);
    const below = key === "ArrowDown" ? 1 : -1;
    return [...image.boxes]
      .filter(([, box]) => (box.y - y) * below > 0)
      .sort(
        ([, one], [, other]) =>
          Math.abs(one.y - y) + 2 * Math.abs(one.x - x) - Math.abs(other.y - y) - 2 * Math.abs(other.x - x),
      )[0]?.[0];
  }

  function node(name, box) {
    const link = draw(
      "a",
      {
        href: `#/graph/${encodeURIComponent(name)}`,
        class: "box",
        "data-key": `node-${name}`,
        "aria-label": relations.words(name),
        pointerenter: () => light(name),
        pointerleave: () => light(pinned),
        focus: () => light(name),
        blur: () => light(pinned),
        click: (event) => {
          event.preventDefault();
          if (pinned === name) location.hash = `#/modules/${encodeURIComponent(name)}`;
          else pin(name);
        },
        keydown: (event) => {
          if (!event.key.startsWith("Arrow")) return;
          event.preventDefault();
          links.get(next(name, event.key))?.focus();
        },
      },
      draw("title", {}, `${relations.words(name)}. Click to hold, again to open.`),
      draw("rect", {x: box.x, y: box.y - BOX / 2, width: box.width, height: BOX, rx: 3}),
      draw("text", {x: box.x + PADDING, y: box.y + 4, textLength: name.length * LETTER}, name),
    );
    links.set(name, link);
    return link;
  }

  function paint() {
    image = picture(relations);
    links = new Map();
    paths = image.lines.map(({user, used, path}) => ({user, used, node: draw("path", {d: path})}));
    // In reading order, so that the tab key goes through the picture from the top.
    const inOrder = [...image.boxes].sort(([, one], [, other]) => one.y - other.y || one.x - other.x);
    image.svg = draw(
      "svg",
      {viewBox: `0 0 ${image.width} ${image.height}`},
      draw("g", {class: "lines", "aria-hidden": "true"}, ...paths.map((one) => one.node)),
      ...inOrder.map(([name, box]) => node(name, box)),
    );
    fit();
    return image.boxes.size ? image.svg : nothing("No loaded module uses another one.");
  }

  function lonely() {
    const names = relations.names.filter((name) => !image.boxes.has(name));
    return names.length
      ? [
          make("h2", {}, count(names.length, "module"), " on ", names.length === 1 ? "its" : "their", " own"),
          make("p", {class: "alone"}, ...joined(names.map(moduleLink), " ")),
        ]
      : [];
  }

  async function again() {
    const rows = await modules("loaded");
    const edges = rows
      .map(({name, holders}) => ({name, holders}))
      .sort((one, other) => (one.name < other.name ? -1 : 1));
    relations = new Relations(edges);
    show(canvas, edges, () => [paint()]);
    show(alone, edges, lonely);
    if (!relations.rows.has(pinned)) pinned = "";
    light(
      document.activeElement?.dataset?.key?.startsWith("node-") ? document.activeElement.dataset.key.slice(5) : pinned,
    );
  }

  pan(canvas, (by) => zoomBy(by));
  return {title: "Graph", refresh: again, close: () => main.classList.remove("lit")};
}

/** Drag to move, Ctrl and the wheel to zoom; the scroll bars and their keys work as everywhere. */
function pan(canvas, zoom) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0 && !event.target.closest("a"))
      from = {x: event.clientX + canvas.scrollLeft, y: event.clientY + canvas.scrollTop};
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    canvas.scrollLeft = from.x - event.clientX;
    canvas.scrollTop = from.y - event.clientY;
  });
  for (const end of ["pointerup", "pointerleave", "pointercancel"])
    canvas.addEventListener(end, () => {
      from = null;
    });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1 : -1);
    },
    {passive: false},
  );
}
