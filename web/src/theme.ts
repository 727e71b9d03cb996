// Colours: as the system, light or dark.

import { byId, shape } from "./dom";

const CHOICES = ["system", "light", "dark"] as const;
const NAMES = { system: "as the system", light: "light", dark: "dark" };
const PATHS = {
  system: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
};
const STORED = "reranker-theme";

type Choice = (typeof CHOICES)[number];

/** Set the button up. `changed` runs after each change, also one of the system. */
export function theme(changed: () => void): void {
  const button = byId<HTMLButtonElement>("theme");
  let choice: Choice = CHOICES.find((each) => each === stored()) ?? "system";
  const apply = (): void => {
    if (choice === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = choice;
    button.setAttribute("aria-label", `Colours: ${NAMES[choice]}`);
    button.title = `Colours: ${NAMES[choice]}`;
    button.replaceChildren(shape("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, shape("path", { d: PATHS[choice] })));
    changed();
  };
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length]!;
    store(choice);
    apply();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

// A browser may forbid storage.
function stored(): string | null {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

function store(choice: Choice): void {
  try {
    localStorage.setItem(STORED, choice);
  } catch {
    // the choice lasts until the page is left
  }
}
