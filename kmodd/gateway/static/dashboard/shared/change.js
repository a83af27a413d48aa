// SPDX-License-Identifier: LGPL-2.1-or-later
// The dialog before every change: plan, options and reason. It stays open and shows the evidence when the change fails.

import {focusOn, make} from "./dom.js";
import {panel} from "./failure.js";
import {notice} from "./notice.js";

const TYPING = 250;
const TYPING_RECORDED = 800;
let open = null;

/** Refresh the plan of an open dialog after an event. */
export const refresh = () => open?.();

function control(field) {
  const id = `change-${field.name}`;
  if (field.kind === "flag") {
    return make(
      "p",
      {class: "flag"},
      make("input", {id, name: field.name, type: "checkbox", checked: field.value}),
      make("label", {for: id}, field.label),
    );
  }
  if (field.kind === "file") {
    return make(
      "p",
      {},
      make("label", {for: id}, field.label),
      make("input", {id, name: field.name, type: "file", required: true}),
    );
  }
  return make(
    "p",
    {},
    make("label", {for: id}, field.label),
    make("input", {
      id,
      name: field.name,
      type: "text",
      value: field.value,
      autocomplete: "off",
      spellcheck: "false",
      required: field.required,
      maxlength: "1024",
      class: field.prose ? "" : "code",
      "aria-describedby": field.hint ? `${id}-hint` : null,
    }),
    field.hint && make("span", {class: "hint", id: `${id}-hint`}, field.hint),
  );
}

function read(form) {
  const values = {};
  for (const input of form.querySelectorAll("input[name]")) {
    values[input.name] =
      input.type === "checkbox" ? input.checked : input.type === "file" ? input.files[0] : input.value;
  }
  return values;
}

/**
 * Show the dialog and make the change.
 *
 * `preview(values)` returns {content, doubtful}: nodes that show what would be done, and whether it is known to fail.
 * `perform(values)` does it and returns one line; `values` holds the fields by name, and `reason`.
 * `fields` are {name, label, kind: "flag" | "file" | "text", value, hint, required}; `more` are those few people need.
 * `recorded` is for a preview that leaves a record in the journal: it is not requested again with every event, nor at every
 * pause in typing.
 * Resolves to whether it was made.
 */
export function change({title, verb, fields = [], more = [], preview, perform, recorded = false}) {
  if (document.querySelector("dialog[open]")) return Promise.resolve(false); // pressed twice
  const opener = document.activeElement.dataset.key;
  return new Promise((resolve) => {
    const plan = make("div", {class: "preview", "aria-live": "polite"}, make("p", {class: "nothing"}, "Loading …"));
    const told = make("div", {class: "told"});
    const submit = make("button", {type: "submit", class: "primary"}, verb);
    const cancel = make("button", {type: "button", click: () => box.close()}, "Cancel");
    const reason = control({name: "reason", label: "Reason, for the journal", required: true, prose: true});
    const form = make(
      "form",
      {
        submit: (event) => {
          event.preventDefault();
          act();
        },
      },
      make("h2", {id: "change-title"}, title),
      make("h3", {}, "Planned changes"),
      plan,
      ...fields.map(control),
      more.length > 0 &&
        make(
          "details",
          {},
          make("summary", {}, more.length === 1 ? "1 parameter" : `${more.length} parameters`),
          ...more.map(control),
        ),
      reason,
      told,
      make("p", {class: "buttons"}, cancel, submit),
    );
    const box = make("dialog", {class: "change", "aria-labelledby": "change-title"}, form);
    let made = false;
    let asked = 0;
    let busy = false;

    async function look() {
      const mine = ++asked;
      let found;
      try {
        found = await preview(read(form));
      } catch (problem) {
        found = {content: panel(problem), doubtful: true};
      }
      if (mine !== asked || busy) return; // a later one is on its way, or it is being done
      // Unchanged content stays, or screen readers would read it again.
      const content = make("div", {}, found.content);
      if (content.textContent !== plan.textContent) plan.replaceChildren(...content.childNodes);
      submit.textContent = found.doubtful ? "Try anyway" : verb;
      submit.classList.toggle("doubtful", Boolean(found.doubtful));
    }

    async function act() {
      if (busy) return;
      busy = true;
      submit.disabled = true;
      cancel.disabled = true;
      submit.textContent = "Working …";
      told.replaceChildren();
      try {
        notice(await perform(read(form)));
        made = true;
        document.dispatchEvent(new Event("changed"));
        box.close();
      } catch (problem) {
        if (!box.isConnected) notice(`${title} failed: ${problem.message}`); // browsers close on a second Escape
        told.replaceChildren(panel(problem));
        told.scrollIntoView({block: "nearest"});
      } finally {
        busy = false;
        submit.disabled = false;
        cancel.disabled = false;
        submit.textContent = verb;
        if (!made) look();
      }
    }

    let timer;
    form.addEventListener("input", (event) => {
      if (event.target.name === "reason") return;
      clearTimeout(timer);
      timer = setTimeout(look, event.target.type === "checkbox" ? 0 : recorded ? TYPING_RECORDED : TYPING);
    });
    // An operation in progress continues in the kernel whatever happens to the dialog, which stays open to show the result.
    box.addEventListener("cancel", (event) => {
      if (busy) event.preventDefault();
    });
    box.addEventListener("close", () => {
      open = null;
      clearTimeout(timer);
      box.remove();
      // The browser restores the focus, unless the element was replaced in the meantime.
      if (document.activeElement === document.body) focusOn(opener);
      resolve(made);
    });
    document.body.append(box);
    open = recorded ? null : look;
    box.showModal();
    // Focus the first field to fill in, else the reason.
    form.querySelector("input:not([type=checkbox], details input)").focus();
    look();
  });
}
