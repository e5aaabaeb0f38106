"""The words of pairing codes: short, common, and no two that differ by one letter only."""

from typing import Final

WORDS: Final = tuple(
    """
    acorn actor agate album alder algae almond amber anchor angle anvil apple apricot apron arena armor
    arrow artist ash aspen aster atlas attic autumn avenue axle azure badge bagel baker bamboo banana banjo
    barley barn barrel basalt basil basket bay beach beacon beam beaver bed beetle bell berry birch bird
    bishop bison blade blanket blossom board boat bone bottle boulder bowl box bracket branch brass bread
    breeze brick bridge bronze brook brush bucket buckle buffalo bugle bulb bundle bunny burrow butter
    button cabbage cabin cable cactus cake camel camera camp canal candle candy canoe canopy canvas canyon
    captain caramel caravan card cargo carpet carrot castle cat cedar cellar cello cement chain chalk chapel
    chariot chart cheese cherry chess chimney chisel cider cinema cinnamon circle circus citrus city clam
    cliff clock cloth cloud clover coach coast cobalt cobra cocoa coconut coffee coin comet compass copper
    coral cork corner cosmos cottage cotton cougar cow coyote crab cradle crane crater crayon cream creek
    crest cricket crown crystal cube cup curtain cushion cycle cypress dagger dahlia dairy dam dance dawn
    deer delta desert desk dew dial diamond dish dock dolphin dome donkey door dragon drawer drum dune dust
    eagle earth easel echo eclipse eel egg elbow elk emerald engine envelope fabric falcon farm feather
    fence fern fiddle field fig finch finger fire flag flame flask flint flower flute forest forge fossil
    fountain frog frost fruit galaxy garden garlic garnet gazelle gem geyser ghost giant giraffe glacier
    glass globe gold goose gourd grain granite grape gravel grove guitar gull hammer hammock harbor harp
    harvest hawk hazel hedge helmet hemlock heron hill hinge honey hood horizon horn horse iceberg igloo
    indigo ink inlet insect iris iron island ivory ivy jacket jade jaguar jar jasmine jelly jet jewel jigsaw
    journal juice jungle juniper kayak kernel kettle key kitchen kite kitten kiwi koala ladder lagoon lamb
    lantern larch lark laurel lava lavender leaf lemon lentil leopard letter lever library lichen lilac lily
    lime linen lion lizard llama lobster locket loom lotus lumber lunar lynx magnet magpie mango mantle
    maple marble market marsh mast meadow medal melon mesa meteor mint mirror mole moon mosaic moss moth
    motor mouse museum mushroom mustard napkin nebula needle nest nickel night noodle north nutmeg oak oasis
    ocean octopus olive onion opal orange orbit orchard orchid organ otter oven oxygen oyster paddle page
    paint palace palm panda panther paper parade parsley pasta pasture path peacock peak pearl pebble pecan
    pelican pencil penguin pepper petal piano pillow pilot pine planet plank plate plaza plow plum poem
    polar pond poppy porch postcard potato prairie prism pumpkin puppet puzzle pyramid quail quarry quartz
    quill rabbit raccoon radio radish raft raven ribbon rice river road robin root rope ruby saffron salmon
    sand sapphire satin school scroll seal season shadow sheep shell ship shore silk silver sky sled smoke
    snail snow sofa spark sparrow spice spider spoon spring spruce squid stable star steel stone stork straw
    stream sugar summer sun swan teapot temple tent thistle thunder tiger timber tomato tower tree trumpet
    tulip tundra tunnel turtle valley vanilla velvet violet violin volcano wagon walnut walrus water wave
    whale wheat wheel window winter wolf wool zebra zinc
    """.split()  # noqa: SIM905  one word a line would be 527 lines
)
