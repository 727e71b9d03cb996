// Elements: finding those of the page, and making new ones.

type Child = Node | string | null | false;
type Attributes = Record<string, string | number | boolean | null>;

/** The element of the page with this id. It is part of index.html, so it exists. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no element #${id}`);
  return found as T;
}

/** A new element. Texts become text nodes, so a passage is never read as HTML. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  assign(made, attributes);
  made.append(...children.filter((child): child is Node | string => child !== null && child !== false));
  return made;
}

/** A new element of SVG. */
export function shape(tag: string, attributes: Attributes = {}, ...children: Node[]): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  assign(made, attributes);
  made.append(...children);
  return made;
}

function assign(target: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) target.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Tell a screen reader what has changed. */
export function say(text: string): void {
  byId("spoken").textContent = text;
}

let toastTimer = 0;

/** Confirm an action for a moment. */
export function toast(text: string): void {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  say(text);
  window.clearTimeout(toastTimer);
  toastTimer = window.setTimeout(() => (box.hidden = true), 2500);
}

/** Copy a text. Pages without TLS have no clipboard interface, so an old command is the second choice. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // An open dialog makes everything outside of it inert, so the text has to be selected inside.
    const area = element("textarea", { class: "hidden", "aria-hidden": "true", tabindex: -1 });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.value = text;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}
