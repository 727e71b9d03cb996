// Examples: passages as a search by words would return them, so that the model has something to move.

import type { Options } from "./request";

export interface Example {
  name: string;
  query: string;
  passages: string[];
  options?: Partial<Options>;
}

const BREAD: Example = {
  name: "A question",
  query: "Why does bread go stale faster in the fridge?",
  passages: [
    "A fridge should be set to four degrees Celsius. Milk, meat and leftovers spoil quickly above that.",
    "To make a loaf rise faster, put the dough in a warm place and cover it with a damp towel.",
    "Stale bread makes good croutons: cut it into cubes, add oil and salt, and bake it for ten minutes.",
    "Rye bread contains less gluten than wheat bread and stays moist for longer.",
    "Frozen bread keeps for three months. Slice it first, so that you can toast single pieces.",
    "Mould grows on a loaf within days at room temperature, because it is warm and damp there.",
    "Bread goes stale because its starch crystallises and loses water. This happens most quickly just above freezing, so a loaf in the fridge turns dry sooner than one on the counter.",
    "A bread bin lets a little air in and keeps the crust from getting soft.",
    "Cold bread turns stale sooner than warm bread. Toasting makes it soft again for a while.",
  ],
};

const SUPPORT: Example = {
  name: "Support articles",
  query: "I was charged twice for one order. How do I get my money back?",
  passages: [
    "How to place an order: choose a product, put it into the cart, and pay by card or bank transfer.",
    "Delivery is charged once for each order, even if it is sent in several parcels.",
    "The sale ends twice a year, in January and in July.",
    "Gift cards cannot be exchanged for money. They are valid for three years.",
    "To change or cancel an order, open it in your account within one hour.",
    "Your invoice is sent by e-mail as soon as the order has left our warehouse.",
    "Refunds for returned goods: send the parcel back within 30 days, and we pay the money back when it has arrived.",
    "A payment fails if the address of the card and of the order differ.",
    "If you were charged two times, the second payment is usually a reservation that your bank releases within three days. Otherwise send us the order number, and we refund the duplicate payment.",
  ],
};

const POLICY: Example = {
  name: "Long documents",
  query: "When may heavy vehicles use the bridge?",
  options: { longDocuments: "chunk_max", windowTokens: "80" },
  passages: [
    "The harbour bridge was opened in 1931. It replaced a ferry that had crossed the river every twenty minutes since the days of the salt trade, and it was for some years the longest bridge of its kind in the country. Its architect had planned four towers; two were built, because the money for the others went into the foundations, which had to be sunk through eighteen metres of mud. The bridge was painted green at first, then grey during the war, and got its red coat in 1958 after a vote among the readers of the local newspaper. On the day of the opening forty thousand people walked across. A small museum in the northern tower shows photographs of the work, the diving bell that the masons used, and the speech of the mayor, who lost his hat to the wind in the middle of it. The museum is open from Wednesday to Sunday, and from the roof of the tower one can see the lighthouse on a clear day.",
    "Rules for traffic in the harbour. One: the speed limit is 30 kilometres per hour on all quays and 20 between the warehouses. Two: parking is only allowed in the marked areas. Trailers without a vehicle are removed after one day, and the owner pays for it. Three: the railway has the right of way at all crossings. Drivers stop at the white line even if no signal is shown, because shunting engines are quiet. Four: cyclists use the path along the water. It is closed while ships are being loaded at quay seven, and a sign shows the way around. Five: vehicles with dangerous goods register at the gate house and follow the yellow signs. Six: vehicles of more than 7.5 tonnes use the bridge only between nine in the evening and six in the morning, and on Sundays not at all; at other times they take the tunnel. Buses and the fire brigade are exempt. Seven: in fog the harbour master may close single quays. The closure is shown on the boards at the gates. Eight: who causes damage reports it to the gate house before leaving. The number of the gate house is on the back of each entry permit. Entry permits are issued for a day, a month or a year. They are valid for one vehicle and cannot be transferred. Lost permits are replaced for a fee.",
    "Lorries are washed at the depot behind the harbour. The wash is open on weekdays from seven to five and on Saturdays until noon. A wash takes about twenty minutes for a lorry and forty with a trailer. Book it at the counter or by telephone; drivers who come without an appointment wait until there is a gap. The depot also checks tyres and lights, and sells oil, bulbs and straps. The canteen next door serves breakfast from six.",
    "The new bridge for pedestrians connects the park and the old town. Dogs are kept on a lead, and bicycles are pushed.",
  ],
};

export const EXAMPLES = [BREAD, SUPPORT, POLICY];
