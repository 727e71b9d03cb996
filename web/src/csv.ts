// Tables in text files.

/** Rows of cells. Quoted cells may contain separators, quotes (doubled) and line breaks. */
export function table(text: string, separator = guess(text)): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = "";
  let quoted = false;
  for (let index = 0; index < text.length; index++) {
    const char = text[index]!;
    if (quoted) {
      if (char !== '"') cell += char;
      else if (text[index + 1] === '"') cell += text[++index];
      else quoted = false;
    } else if (char === '"' && cell === "") {
      quoted = true;
    } else if (char === separator) {
      row.push(cell);
      cell = "";
    } else if (char === "\n") {
      rows.push([...row, cell.replace(/\r$/, "")]);
      row = [];
      cell = "";
    } else {
      cell += char;
    }
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows;
}

/** The separator that the header has most of. */
function guess(text: string): string {
  const header = text.split("\n", 1)[0] ?? "";
  const found = [",", ";", "\t"].map((char): [number, string] => [header.split(char).length, char]);
  return found.reduce((best, each) => (each[0] > best[0] ? each : best))[1];
}
